ALTER TABLE listed ADD COLUMN key TEXT;    -- hex SHA-256 of the device's public key, where the list has it
