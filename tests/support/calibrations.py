"""Calibrations as `softspec calibrate` writes them, small enough to be read."""

from softspec.artefact.calibration import Calibration

_CERTIFIED = {"delta": 0.1, "coverage": 0.5, "error": 0.02, "num_rows": 200}

ANSWERS = Calibration.model_validate(
    {
        "judged": "answers",
        "metric": "max_epistemic",
        "method": "isotonic",
        "curve": [(0.0, 0.9), (0.5, 0.5), (1.0, 0.1)],
        "thresholds": [
            {"target_error": 0.05, "threshold": 0.3, **_CERTIFIED},
            {"target_error": 0.05, "group": "law", "threshold": 0.1, **_CERTIFIED},
            {"target_coverage": 0.8, "threshold": 0.55, **_CERTIFIED},
        ],
        "reference": {"values": [0.2, 0.5, 0.8], "shares": [0.1, 0.4, 1.0]},
    }
)
DECISIONS = Calibration.model_validate(
    {
        "judged": "decisions",
        "metric": "epistemic",
        "method": "platt",
        "curve": [(0.0, 1.0), (0.5, 0.0)],
        "thresholds": [
            {"target_error": 0.05, "threshold": 0.2, **_CERTIFIED},
            {"target_error": 0.2, "threshold": 0.4, **_CERTIFIED},
        ],
    }
)
SEVERAL = Calibration.model_validate(
    {
        "judged": "answers",
        "metric": "confidence",
        "method": "platt",
        "curve": [(-1.0, 0.95), (0.5, 0.6), (3.0, 0.05)],
        "inputs": [
            {"metric": "mutual_information", "weight": 1.0, "low": 0.0, "high": 2.0},
            {"metric": "total_entropy", "weight": 2.0, "low": 0.0, "high": 1.0},
        ],
        "thresholds": [{"target_error": 0.05, "threshold": 0.8, **_CERTIFIED}],
    }
)
