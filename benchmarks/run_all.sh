#!/usr/bin/env bash
# All figures of RESULTS.md anew: three quarters of an hour on two CPU cores, which should have nothing else to do.
# Records go to records/, the page is made of them. MENTOR=... names another command than `mentor`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
read -ra mentor <<< "${MENTOR:-mentor}"
records=benchmarks/records

bench() { # NAME ARGUMENTS...
    echo "== $1"
    "${mentor[@]}" bench "${@:2}" --out "$records/$1.json"
}

against=(--batch 32 --prompts 4 --guidance 7.5 --prefix 120 --against reference)

bench rollout_tiny_float32 rollout --size tiny "${against[@]}" --tokens 256 --dtype float32 --repeats 3
bench rollout_tiny_bfloat16 rollout --size tiny "${against[@]}" --tokens 256 --dtype bfloat16 --repeats 2 --timed 32
bench rollout_B_float32 rollout --size B "${against[@]}" --tokens 256 --dtype float32 --repeats 3 --timed 16
bench rollout_B_bfloat16 rollout --size B "${against[@]}" --tokens 256 --dtype bfloat16 --repeats 2 --timed 8 --compared 16
bench grpo_tiny grpo --size tiny --steps 6
ar_grpo=(--tokens 256 --against ar_grpo algorithm.guidance.logprob=conditional monitoring.prompts=1)
bench grpo_tiny_ar_grpo grpo --size tiny --steps 2 "${ar_grpo[@]}"
one_group=(algorithm.prompts_per_step=1 algorithm.micro_batch=8)
bench grpo_B_ar_grpo grpo --size B --steps 2 "${ar_grpo[@]}" "${one_group[@]}"
# a reference picture fills 256 prefix slots of MENTOR's prompts, 16 x 16 patches
bench grpo_tiny_ar_grpo_256 grpo --size tiny --steps 2 --reference-slots 256 "${ar_grpo[@]}"
bench grpo_B_ar_grpo_256 grpo --size B --steps 2 --reference-slots 256 "${ar_grpo[@]}" "${one_group[@]}"
padded=(--reference-slots 256 --padded-to 512) # and its code pads them to 512
bench grpo_tiny_ar_grpo_512 grpo --size tiny --steps 2 "${padded[@]}" "${ar_grpo[@]}"
bench grpo_B_ar_grpo_512 grpo --size B --steps 1 "${padded[@]}" "${ar_grpo[@]}" "${one_group[@]}"
bench sft_tiny sft --size tiny --batch 32 --steps 3
bench load_XL load --size XL

"${mentor[@]}" bench table "$records" --out benchmarks/RESULTS.md
