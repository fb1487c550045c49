"""The competition's scripts and what stands behind them."""
