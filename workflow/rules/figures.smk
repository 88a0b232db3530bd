# One job a figure; models run only for figures of images.


rule figure:
    input:
        lambda w: plan.figure_inputs(w.prefix, w.figure),
    output:
        png=FIGURE_PNG,
        pdf=FIGURE_PDF,
        card=FIGURE_CARD,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity("figure", plan.scale_of(w.prefix), figure=w.figure),
    log:
        "results/{prefix}logs/figure_{figure}.log",
    resources:
        **asked("figure"),
    shell:
        "possam figure {wildcards.figure} --scale {params.scale} --device {resources.device} "
        "2> >(tee {log} >&2)"
