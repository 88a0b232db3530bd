# One job per figure; only figures of images run models.


rule figure:
    input:
        lambda w: graph.inputs("figure", w),
    output:
        files("figure"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("figure", w),
    log:
        "results/{prefix}logs/figure_{figure}.log",
    resources:
        **asked("figure"),
    shell:
        "{resources.setup}"
        "possam figure {wildcards.figure} --scale {params.scale} --device {resources.device} "
        "2> >(tee {log} >&2)"
