# Tables from evaluations, MLflow as a view of results/, and the page of all tables and figures.


rule table:
    input:
        lambda w: graph.inputs("table", w),
    output:
        files("table"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("table", w),
    log:
        "results/{prefix}logs/{table}.log",
    resources:
        **asked("table"),
    shell:
        "{resources.setup}"
        "possam table {wildcards.table} --scale {params.scale} 2> >(tee {log} >&2)"


rule track:
    input:
        lambda w: graph.inputs("track", w),
    output:
        files("track"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("track", w),
    log:
        "results/{prefix}logs/track_{table}.log",
    resources:
        **asked("table"),
    shell:
        "{resources.setup}"
        "possam track {wildcards.table} --scale {params.scale} 2> >(tee {log} >&2)"


rule report:
    input:
        lambda w: graph.inputs("report", w),
    output:
        files("report"),
    params:
        scale=scale_of,
        identity=lambda w: graph.identity("report", w),
    log:
        "results/{prefix}logs/report.log",
    resources:
        **asked("table"),
    shell:
        "{resources.setup}" "possam report --scale {params.scale} 2> >(tee {log} >&2)"
