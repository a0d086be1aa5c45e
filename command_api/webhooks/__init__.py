"""Events posted to receivers outside, signed by Standard Webhooks, at least once each."""
