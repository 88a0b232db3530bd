#!/bin/bash
# uv with the settings of pip, which it does not read itself: workflow/uv.sh .venv/bin pip install ...
# pip knows them from pip.conf and PIP_*. They are passed on as variables, so that no command line shows an address.
bin=$1
shift
pip_says() {
  local name=PIP_${1^^} scope
  name=${name//-/_}
  [ -n "${!name:-}" ] && { echo "${!name}"; return; }
  for scope in install global; do
    "$bin/python" -m pip config get "$scope.$1" 2>/dev/null && return
  done
  return 0
}
words() { tr -s '[:space:]' "$1" | sed "s/^$1//; s/$1\$//"; }
give() { # VARIABLE VALUE: unless the user has set it
  [ -n "${!1:-}" ] || [ -z "$2" ] || export "$1=$2"
}
give UV_DEFAULT_INDEX "$(pip_says index-url)"
extra=$(pip_says extra-index-url | words ' ')
give UV_INDEX "$extra"
# pip takes a package from whichever index has it.
[ -z "$extra" ] || give UV_INDEX_STRATEGY unsafe-best-match
give UV_FIND_LINKS "$(pip_says find-links | words ,)"
give UV_INSECURE_HOST "$(pip_says trusted-host | words ' ')"
give SSL_CERT_FILE "${REQUESTS_CA_BUNDLE:-${CURL_CA_BUNDLE:-$(pip_says cert)}}"
give HTTPS_PROXY "${https_proxy:-$(pip_says proxy)}"
exec "$bin/uv" "$@"
