#!/usr/bin/env bash
# Train, and when that has ended well, write an HTML report of it: two jobs, the second waits for the first.
#
#   jobs/train_then_report.sh [options of sbatch]        options go to both jobs, as --account=project
#
# A training that is stopped and goes on (exit code 75) has not ended: the report waits until the last round is done.
# If the training fails for good, the report is cancelled (--kill-on-invalid-dep).
set -euo pipefail

script=${SCRIPT:-jobs/train_9ranks.sbatch}  # EDIT 1: what is to be trained
export OUT=${OUT:-runs/$(basename "$script" .sbatch)-$(date -u +%Y%m%dT%H%M%S)}

training=$(sbatch --parsable "$@" "$script")
report=$(sbatch --parsable "$@" --job-name=report --ntasks=1 --time=30 --output=%x-%j.log \
    --dependency="afterok:${training%%;*}" --kill-on-invalid-dep=yes << 'END'
#!/usr/bin/env bash
# EDIT 2: as in the script of the training
source .venv/bin/activate
python analysis/report.py "$OUT"
END
)
echo "training: job ${training%%;*}, report: job ${report%%;*}, folder: $OUT"
