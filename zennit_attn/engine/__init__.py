"""The engine: functions of torch, their rules, and the mode that applies them in a forward. Nothing here is public."""
