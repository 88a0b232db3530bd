# Upstream files, written by the procedural world or downloaded; from them data sets in the common format, and features.


rule world:
    output:
        files("world"),
    params:
        identity=lambda w: graph.identity("world", w),
    log:
        "data/{scale}/logs/world.log",
    threads: processors("world", 2)
    resources:
        **asked("world"),
    shell:
        "{resources.setup}"
        "possam world --scale {wildcards.scale} --workers {resources.cpus_per_task} 2> >(tee {log} >&2)"


rule download:
    input:
        lambda w: graph.inputs("download", w),
    output:
        files("download"),
    params:
        identity=lambda w: graph.identity("download", w),
    log:
        "data/{scale}/logs/download_{asset}.log",
    resources:
        downloads=1,
    shell:
        "possam download {wildcards.asset} --scale {wildcards.scale} 2> >(tee {log} >&2)"


rule convert:
    input:
        lambda w: graph.inputs("convert", w),
    output:
        files("convert"),
    params:
        identity=lambda w: graph.identity("convert", w),
    log:
        "data/{scale}/logs/convert_{dataset}_{split}.log",
    threads: processors("convert", 1)
    resources:
        **asked("convert"),
    shell:
        "{resources.setup}"
        "possam convert {wildcards.dataset} {wildcards.split} --scale {wildcards.scale} "
        "--workers {resources.cpus_per_task} 2> >(tee {log} >&2)"


rule features:
    input:
        lambda w: graph.inputs("features", w),
    output:
        files("features"),
    params:
        identity=lambda w: graph.identity("features", w),
    log:
        "data/{scale}/logs/features_{tower}_{dataset}_{split}.log",
    # Before conversions and evaluations: trainings wait for features.
    priority: 2
    resources:
        **asked("features"),
    shell:
        "{resources.setup}"
        "possam features {wildcards.tower} {wildcards.dataset} {wildcards.split} "
        "--scale {wildcards.scale} 2> >(tee {log} >&2)"
