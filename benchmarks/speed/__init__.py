"""Time and memory of a correction, as ratios of what was measured in the same run."""

from verifix.model.threads import wait_passively

wait_passively()  # as the command does: with spinning threads, an SVD takes several times as long on a busy machine
