"""The auditor: compares stream and read models with the log, repairs the one and alarms on the other."""
