"""What the switch is told to do, as OpenFlow: from settings to flow mods, from cookies back to sentences.

Reading order: `messages` (OpenFlow 1.3 in bytes), `policy` (settings to entries), `explain` (a cookie to a
sentence). Functions from values to values; nothing here sends, waits or keeps state.
"""
