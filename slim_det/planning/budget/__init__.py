"""From measured losses to the ratios that meet a budget at the smallest predicted loss."""
