"""Mixed precision: which groups of nodes must stay in higher precision so that the gates hold, at the least cost.

    groups      the nodes that are quantized together
    costs       what quantizing a node saves
    borders     what keeping groups costs where they meet quantized ones
    search      the fewest groups to keep, by trials
    margin      whether gates hold with a margin on few samples
    sequence    the verdict on several choices, without a correction for their number
    journal     the trials so far, in a file that a killed run leaves readable
    budget      how long a search may take

Stages measure; this package only decides.
"""
