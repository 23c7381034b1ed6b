"""Results that mean something at their n: protocol, decoding, win / tie / loss, pass@k, failures, regression, judge."""
