# One job for each (run, benchmark, condition).


rule evaluate:
    input:
        lambda w: plan.evaluation_inputs(w.prefix, w.run, w.benchmark, w.condition),
    output:
        EVALUATION,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity(
            "evaluate",
            plan.scale_of(w.prefix),
            run=w.run,
            benchmark=w.benchmark,
            condition=w.condition,
        ),
    log:
        "results/{prefix}logs/evaluate_{run}_{benchmark}_{condition}.log",
    shell:
        "possam evaluate {wildcards.run} {wildcards.benchmark} --condition {wildcards.condition} "
        "--scale {params.scale} 2> >(tee {log} >&2)"
