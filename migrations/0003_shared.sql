-- Whether somebody else relies on a permit, because it asked for the same under the same id: then dropping the booking
-- that it was granted to first does not take it back.
ALTER TABLE permit ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;
