"""The suites of `evaluate`, in the order of its tables. To add one, add its entry here."""

from jtcse_jax.evaluation.diagnostics_suite import DIAGNOSTICS
from jtcse_jax.evaluation.mteb_suite import MTEB
from jtcse_jax.evaluation.sts_suite import STS
from jtcse_jax.evaluation.suite import Suite
from jtcse_jax.evaluation.transfer_suite import TRANSFER

SUITES: dict[str, Suite] = {suite.name: suite for suite in (STS, TRANSFER, DIAGNOSTICS, MTEB)}
