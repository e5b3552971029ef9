"""From folders of text to memory-mapped token shards; numpy only, nothing whole in memory."""
