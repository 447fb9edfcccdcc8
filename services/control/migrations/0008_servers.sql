-- What a server may ask of agents, how it is spoken to, and the credentials that are more than a
-- header. Code of before these columns writes rows that mean what they meant.

ALTER TABLE servers
    -- Empty: the shipped grants.
    ADD COLUMN grants              jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN first_byte_s        integer NOT NULL DEFAULT 120
                                   CHECK (first_byte_s BETWEEN 1 AND 600),
    ADD COLUMN share               text NOT NULL DEFAULT 'agent'
                                   CHECK (share IN ('agent', 'server')),
    ADD COLUMN headers             jsonb NOT NULL DEFAULT '{}',
    -- A reference, as every secret's.
    ADD COLUMN ca                  text NOT NULL DEFAULT ''
                                   CHECK (ca = '' OR ca LIKE 'secret://%'),
    -- Of the kinds beside none and header. What is secret in it is a reference.
    ADD COLUMN credential_settings jsonb NOT NULL DEFAULT '{}',
    DROP CONSTRAINT servers_credential_kind_check,
    ADD CONSTRAINT servers_credential_kind_check CHECK (credential_kind IN (
        'none', 'header', 'client_credentials', 'jwt_bearer', 'token_exchange', 'mtls'));
