# The small synthetic SAMs and CLIP are shipped; this target of its own makes them anew.


rule towers:
    output:
        touch("data/towers.rebuilt"),
    log:
        "data/logs/towers.log",
    threads: 2
    shell:
        "possam pretrain 2> >(tee {log} >&2)"
