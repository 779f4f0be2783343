"""All stages from logs to a report, sized to a budget of time and memory."""
