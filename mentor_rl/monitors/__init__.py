"""What a GRPO run watches beside what it optimises: groups, copies, held-out rewards, fixed prompts. Free of trl."""
