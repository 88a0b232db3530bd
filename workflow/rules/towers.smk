# The small synthetic SAMs and CLIP are shipped; only this target trains them anew.


rule towers:
    output:
        touch("data/towers.rebuilt"),
    log:
        "data/logs/towers.log",
    threads: 2
    shell:
        "possam pretrain 2> >(tee {log} >&2)"
