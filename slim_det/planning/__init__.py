"""What decides how much is cut where: sensitivities, latency tables, budgets."""
