-- Whom a provider's logout was of: a sign-in that was on its way when it came is not let in after it.
-- Rows of before name nobody.
ALTER TABLE logout_tokens
    ADD COLUMN issuer    text,
    ADD COLUMN subject   text,
    ADD COLUMN sid       text,
    ADD COLUMN issued_at timestamptz;
