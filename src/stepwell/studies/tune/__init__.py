"""The study `tune`: train an adapter, merge it, prove the merge, grade it, mine its failures and go on."""
