"""What Liao et al. 2018 published, number by number."""

from __future__ import annotations

METHODS = ("bptt", "tbptt", "rbp", "cg", "neumann")

TABLE1: dict[str, dict[int, float]] = {
    "tbptt": {10: 1.00, 20: 1.00, 30: 1.00},
    "rbp": {10: 0.01, 20: 0.04, 30: 0.99},
    "cg": {10: 1.00, 20: 1.00, 30: 1.00},
    "neumann": {10: 1.00, 20: 1.00, 30: 1.00},
}
"""Share of 100 runs whose training loss fell below half, by truncation."""

TABLE2: dict[str, dict[str, tuple[float, float]]] = {
    "cora": {
        "baseline": (39.96, 3.4),
        "bptt": (24.48, 6.6),
        "tbptt": (46.55, 6.4),
        "rbp": (29.25, 3.3),
        "cg": (39.26, 6.5),
        "neumann": (46.63, 8.3),
    },
    "pubmed": {
        "baseline": (40.41, 3.1),
        "bptt": (47.05, 3.1),
        "tbptt": (53.41, 6.7),
        "rbp": (48.55, 3.4),
        "cg": (49.12, 2.9),
        "neumann": (53.56, 5.3),
    },
}
"""Test accuracy in percent: mean and standard deviation of 10 seeds."""

TABLE3: dict[int, tuple[float, float]] = {10: (3.02, 4.35), 50: (2.87, 4.25), 100: (2.68, 4.11)}
"""BPTT's cost over Neumann-RBP's at T = 1000: time and memory, by truncation."""

TABLE_A1: dict[str, dict[str, int]] = {
    "cora": {"nodes": 2708, "edges": 5429, "classes": 7, "features": 1433},
    "pubmed": {"nodes": 19717, "edges": 44338, "classes": 3, "features": 500},
}

FIGURE4 = (
    (100, 50), (500, 50), (1000, 50), (1500, 50),
    (100, 100), (500, 100), (1000, 100), (1500, 100),
)  # fmt: skip
"""Its run_specs (T, K); the caption of (g) repeats (1500, 100) where the series asks for 1000."""
