-- Sign-in by an OpenID provider: who somebody is there, sign-ins on their way, and what a provider
-- said is over.

-- A person is an issuer's subject. Addresses change hands; these do not.
CREATE TABLE user_identities (
    tenant_id  uuid NOT NULL,
    issuer     text NOT NULL,
    subject    text NOT NULL,
    user_id    uuid NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, issuer, subject),
    UNIQUE (tenant_id, user_id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- Neither the nonce nor PKCE's verifier is here: the browser's cookie makes them.
CREATE TABLE sign_in_transactions (
    state_sha256   bytea PRIMARY KEY,
    tenant_id      uuid NOT NULL REFERENCES tenants (id),
    browser_sha256 bytea NOT NULL,
    -- Of the settings that it was begun under.
    revision       bigint NOT NULL,
    return_to      text NOT NULL,
    -- The session that is to be proven anew; null: a sign-in.
    session_sha256 bytea,
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    used_at        timestamptz
);
CREATE INDEX sign_in_transactions_end ON sign_in_transactions (tenant_id, expires_at);

-- Logout tokens that were heard, for as long as one could be sent again.
CREATE TABLE logout_tokens (
    tenant_id  uuid NOT NULL REFERENCES tenants (id),
    id_sha256  bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id_sha256)
);

-- The provider's own session, where it names one.
ALTER TABLE user_sessions ADD COLUMN provider_sid text;

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY['user_identities', 'sign_in_transactions', 'logout_tokens'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', isolated);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', isolated);
        EXECUTE format(
            'CREATE POLICY own_tenant ON %I
                 USING (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)
                 WITH CHECK
                     (tenant_id = nullif(current_setting(''behavry.tenant_id'', true), '''')::uuid)',
            isolated);
    END LOOP;
END $$;

-- What must be found before a tenant is known, as in 0001: one row for one exact key.
CREATE POLICY lookup ON sign_in_transactions FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON auth_settings FOR SELECT TO behavry_control_owner USING (true);

CREATE FUNCTION find_sign_in_transaction(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status
    FROM sign_in_transactions s JOIN tenants t ON t.id = s.tenant_id
    WHERE s.state_sha256 = wanted
$$;

CREATE FUNCTION find_tenants_of_issuer(wanted text)
RETURNS TABLE (tenant_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id
    FROM auth_settings s JOIN tenants t ON t.id = s.tenant_id
    WHERE s.provider = 'oidc' AND t.status = 'active' AND s.document -> 'oidc' ->> 'issuer' = wanted
    ORDER BY t.id LIMIT 100
$$;

REVOKE ALL ON FUNCTION find_sign_in_transaction(bytea), find_tenants_of_issuer(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_sign_in_transaction(bytea), find_tenants_of_issuer(text)
    TO behavry_control;
