"""What tuning and generation share: the backbone with its semantic-ID rows, and trie-masked decoding. No verb."""
