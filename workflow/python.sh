#!/bin/bash
# Prints the newest supported Python that can make environments; without any, makes one with uv in the folder $1.
#   workflow/python.sh FOLDER UV_VERSION       PYTHON=path: that one, or a reason why not
# A command that is found need not work: pyenv's exist for versions that are not selected, and Debian's
# lacks ensurepip until the package python3-venv is there.
folder=$1 uv_version=$2
# As requires-python in pyproject.toml; a test compares them. 3.14 comes last: one package of the lock, immutables (of
# Snakemake), has no wheel for it yet, so a C compiler is needed.
supported="3.13 3.12 3.11 3.14"
say() { echo "make: $*" >&2; }
version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
fits() { [[ " $supported " == *" $(version_of "$1") "* ]]; }
can_make() { "$1" -I -c 'import venv, ensurepip' 2>/dev/null; }
remedy="install one (Debian: apt install python3-venv; pyenv install 3.13; uv python install 3.13), or set PYTHON=its path"
without_venv=

if [ -n "${PYTHON:-}" ]; then
  python=$(command -v "$PYTHON") || { say "PYTHON=$PYTHON: no such command; $remedy"; exit 2; }
  fits "$python" || { say "$PYTHON is Python $(version_of "$python"), not one of $supported; $remedy"; exit 2; }
  can_make "$python" || { say "$PYTHON lacks the modules venv or ensurepip (Debian: apt install python3-venv)"; exit 2; }
  echo "$python"
  exit
fi

for version in $supported; do
  while read -r python; do
    [ "$(version_of "$python")" = "$version" ] || continue
    can_make "$python" && { echo "$python"; exit; }
    without_venv=$python
  done < <(type -ap "python$version" python3 python)
done
if [ -n "$without_venv" ]; then
  say "$without_venv lacks the modules venv or ensurepip: apt install python3-venv (or the package python$(version_of "$without_venv")-venv)"
  exit 2
fi

made() {
  local found=("$folder"/cpython-*/bin/python3)
  [ -x "${found[-1]}" ] && fits "${found[-1]}" && echo "${found[-1]}"
}
python=$(made)
[ -n "$python" ] && { echo "$python"; exit; }
newest=${supported%% *}
say "no Python of $supported is here; uv makes one in $folder"
uv=$(command -v uv) || {
  any=$(command -v python3) && "$any" -m venv "$folder/uv" >/dev/null 2>&1 \
    && "$folder/uv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" >&2 \
    && uv=$folder/uv/bin/uv
}
[ -n "$uv" ] || { say "uv is not here either, and cannot be installed: $remedy"; exit 2; }
"$uv" python install --quiet --install-dir "$folder" "$newest" >&2 && python=$(made) && [ -n "$python" ] \
  || { say "uv cannot fetch Python $newest (no network to its builds?): $remedy"; exit 2; }
echo "$python"
