ALTER TABLE registration ADD COLUMN voucher TEXT; -- for the fingerprint: the tunnel server knows by it whose registration this is
