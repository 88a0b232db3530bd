# Upstream files: written by the procedural world or fetched, then converted to the common format.


rule world:
    output:
        WORLD,
    params:
        identity=lambda w: plan.identity("world", w.scale),
    log:
        "data/{scale}/logs/world.log",
    threads: processors("world", 2)
    resources:
        **asked("world"),
    shell:
        "possam world --scale {wildcards.scale} --workers {threads} 2> >(tee {log} >&2)"


rule download:
    input:
        lambda w: plan.asset_inputs(w.scale, w.asset),
    output:
        ASSET,
    params:
        identity=lambda w: plan.identity("download", w.scale, asset=w.asset),
    log:
        "data/{scale}/logs/download_{asset}.log",
    resources:
        downloads=1,
    shell:
        "possam download {wildcards.asset} --scale {wildcards.scale} 2> >(tee {log} >&2)"


rule convert:
    input:
        lambda w: plan.dataset_inputs(w.scale, w.dataset, w.split),
    output:
        DATASET,
    params:
        identity=lambda w: plan.identity("convert", w.scale, dataset=w.dataset, split=w.split),
    log:
        "data/{scale}/logs/convert_{dataset}_{split}.log",
    threads: processors("convert", 1)
    resources:
        **asked("convert"),
    shell:
        "possam convert {wildcards.dataset} {wildcards.split} --scale {wildcards.scale} "
        "--workers {threads} 2> >(tee {log} >&2)"


rule features:
    input:
        lambda w: plan.features_inputs(w.scale, w.tower, w.dataset, w.split),
    output:
        FEATURES,
    params:
        identity=lambda w: plan.identity("features", w.scale, tower=w.tower),
    log:
        "data/{scale}/logs/features_{tower}_{dataset}_{split}.log",
    # Before what waits for them: trainings come first, too.
    priority: 2
    resources:
        **asked("features"),
    shell:
        "possam features {wildcards.tower} {wildcards.dataset} {wildcards.split} "
        "--scale {wildcards.scale} 2> >(tee {log} >&2)"
