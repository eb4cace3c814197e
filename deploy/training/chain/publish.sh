#!/bin/sh
# Evaluates the run that was trained last, and publishes it if it passes the gate. Each run is judged once.
set -eu

run=$(readlink -e /runs/trained) || { echo "no run is trained"; exit 0; }
test ! -e "$run/judged" || { echo "$run is judged"; exit 0; }

# The first time nothing is served yet: the gate then compares with the bundled student.
python -P -m model publish bundled-student --repository=/models --if-empty

python -P -m training evaluate "$run" --served=/models/current --data=/data/evaluation \
  --scenes="$SCENES" --card=/config/card.md --output="$run/scored"

# Exits with 3 if the student is too weak or worse than the served model.
python -P -m training gate "$run/scored" --rules=/config/gate.toml || {
  status=$?
  test "$status" -ne 3 || touch "$run/judged"
  exit "$status"
}

# The graphs in float32, and those that GPUs serve. Exits with 2 if a graph's outputs differ from the model's.
python -P -m training export --checkpoint="$run/scored" --output="$run/package" --name=student \
  --precision="$PRECISION"

# Prints the version's folder, the new value of TIPSERVE_MODEL for the servers.
python -P -m model publish "$run/package" --repository=/models
touch "$run/judged"
