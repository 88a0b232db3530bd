# One job for each (run, seed, benchmark, condition), with all variants that tables ask for there.


rule evaluate:
    input:
        lambda w: plan.evaluation_inputs(w.prefix, w.run, w.seed, w.benchmark, w.condition),
    output:
        EVALUATION,
    params:
        scale=lambda w: plan.scale_of(w.prefix),
        identity=lambda w: plan.identity(
            "evaluate",
            plan.scale_of(w.prefix),
            run=w.run,
            seed=w.seed,
            benchmark=w.benchmark,
            condition=w.condition,
        ),
    log:
        "results/{prefix}logs/evaluate_{run}_seed{seed}_{benchmark}_{condition}.log",
    shell:
        "possam evaluate {wildcards.run} {wildcards.benchmark} --seed {wildcards.seed} "
        "--condition {wildcards.condition} --scale {params.scale} 2> >(tee {log} >&2)"
