-- Limits that keep their history: rows of `charge` stay for so long after their instant, though no window holds them any
-- more. 0 if they go as soon as they have left all windows.
ALTER TABLE limit_definition ADD COLUMN keep_ns INTEGER NOT NULL DEFAULT 0;
