# Tables from evaluations, the page that shows them all; MLflow as a view of what lies in results/.


rule table:
    input:
        lambda w: plan.table_inputs(w.prefix, w.table),
    output:
        csv=TABLE_CSV,
        md=TABLE_MD,
        tex=TABLE_TEX,
        card=TABLE_CARD,
        metrics=TABLE_METRICS,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity("table", plan.scale_of(w.prefix), table=w.table),
    log:
        "results/{prefix}logs/{table}.log",
    resources:
        **asked("table"),
    shell:
        "possam table {wildcards.table} --scale {params.scale} 2> >(tee {log} >&2)"


rule track:
    input:
        TABLE_CSV,
    output:
        TRACKING,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity("track", plan.scale_of(w.prefix), table=w.table),
    log:
        "results/{prefix}logs/track_{table}.log",
    resources:
        **asked("table"),
    shell:
        "possam track {wildcards.table} --scale {params.scale} 2> >(tee {log} >&2)"


rule report:
    input:
        lambda w: plan.report_inputs(w.prefix),
    output:
        REPORT,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity("report", plan.scale_of(w.prefix)),
    log:
        "results/{prefix}logs/report.log",
    resources:
        **asked("table"),
    shell:
        "possam report --scale {params.scale} 2> >(tee {log} >&2)"
