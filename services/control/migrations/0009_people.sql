-- People beyond the first admin: invites, second factors, sessions that can be named, keys with
-- scopes, who runs the installation, and how a tenant's people sign in. Code of before these columns
-- writes rows that mean what they meant.

ALTER TABLE tenants ADD COLUMN revision bigint NOT NULL DEFAULT 1;

ALTER TABLE users
    ADD COLUMN email          text NOT NULL DEFAULT '',
    -- Outside the roles of tenants; given on the host alone, see the grants below.
    ADD COLUMN is_super_admin boolean NOT NULL DEFAULT false,
    ADD COLUMN revision       bigint NOT NULL DEFAULT 1,
    -- Whoever signs in elsewhere has none.
    ALTER COLUMN password_hash DROP NOT NULL,
    DROP CONSTRAINT users_status_check,
    -- A person who is gone stays as a row: votes and records name them.
    ADD CONSTRAINT users_status_check CHECK (status IN ('active', 'deactivated', 'deleted'));

-- No request can make a super-admin, whatever it is made to write: the service's role may not touch
-- that column. People are never taken out of the books.
REVOKE INSERT, UPDATE, DELETE ON users FROM behavry_control;
GRANT INSERT (id, tenant_id, username, role, password_hash, status, created_at, email),
      UPDATE (username, role, password_hash, status, email, revision)
    ON users TO behavry_control;

-- A tenant that has an active admin keeps one. Whoever takes an admin away waits for the tenant's
-- row first, so two at once, through however many processes, see each other.
CREATE FUNCTION keep_last_admin() RETURNS trigger
LANGUAGE plpgsql SET search_path = control, pg_temp AS $$
BEGIN
    PERFORM 1 FROM tenants WHERE id = OLD.tenant_id FOR NO KEY UPDATE;
    IF NOT EXISTS (
        SELECT 1 FROM users
        WHERE tenant_id = OLD.tenant_id AND id <> OLD.id AND role = 'admin' AND status = 'active'
    ) THEN
        RAISE EXCEPTION 'the last admin' USING ERRCODE = '23514', CONSTRAINT = 'last_admin';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_last_admin BEFORE UPDATE OF role, status ON users FOR EACH ROW
    WHEN (OLD.role = 'admin' AND OLD.status = 'active'
          AND (NEW.role <> 'admin' OR NEW.status <> 'active'))
    EXECUTE FUNCTION keep_last_admin();

ALTER TABLE user_sessions
    ADD COLUMN id        uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN client_ip text NOT NULL DEFAULT '',
    -- What proved who it is, last: `password`, `totp`, `passkey`, `recovery_code`, `oidc`.
    ADD COLUMN method    text NOT NULL DEFAULT 'password';

ALTER TABLE api_keys
    -- Empty: whatever the role may.
    ADD COLUMN scopes      text[] NOT NULL DEFAULT '{}',
    ADD COLUMN replaced_by text;
CREATE INDEX api_keys_creator ON api_keys (tenant_id, created_by) WHERE revoked_at IS NULL;

CREATE TABLE invites (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES tenants (id),
    email        text NOT NULL,
    role         text NOT NULL CHECK (role IN ('viewer', 'analyst', 'policy_author', 'admin')),
    token_sha256 bytea NOT NULL UNIQUE,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    accepted_at  timestamptz,
    revoked_at   timestamptz,
    user_id      uuid
);
CREATE INDEX invites_tenant ON invites (tenant_id, id);
-- One open invite per address.
CREATE UNIQUE INDEX invites_open ON invites (tenant_id, email)
    WHERE accepted_at IS NULL AND revoked_at IS NULL;

CREATE TABLE user_factors (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('totp', 'passkey')),
    name          text NOT NULL,
    -- Of one-time codes, sealed; and the last step that was used.
    secret        bytea,
    last_step     bigint NOT NULL DEFAULT 0,
    -- Of passkeys.
    credential_id bytea,
    public_key    bytea,
    sign_count    bigint NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL,
    -- Null until it was used once.
    confirmed_at  timestamptz,
    removed_at    timestamptz,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);
CREATE INDEX user_factors_user ON user_factors (tenant_id, user_id) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX user_factors_credential ON user_factors (tenant_id, credential_id)
    WHERE credential_id IS NOT NULL AND removed_at IS NULL;

CREATE TABLE recovery_codes (
    tenant_id   uuid NOT NULL,
    user_id     uuid NOT NULL,
    code_sha256 bytea NOT NULL,
    created_at  timestamptz NOT NULL,
    used_at     timestamptz,
    PRIMARY KEY (tenant_id, user_id, code_sha256),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- What somebody was asked to answer: the second half of a sign-in, a new passkey, a step-up.
CREATE TABLE sign_in_challenges (
    token_sha256 bytea PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    user_id      uuid NOT NULL,
    purpose      text NOT NULL CHECK (purpose IN ('sign_in', 'enroll', 'step_up')),
    -- What a passkey signs; empty for whoever has none.
    challenge    bytea NOT NULL,
    session_kind text NOT NULL,
    attempts     integer NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- How a tenant's people sign in.
CREATE TABLE auth_settings (
    tenant_id  uuid PRIMARY KEY REFERENCES tenants (id),
    provider   text NOT NULL CHECK (provider IN ('password', 'oidc')),
    document   jsonb NOT NULL DEFAULT '{}',
    revision   bigint NOT NULL,
    updated_at timestamptz NOT NULL
);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY[
        'invites', 'user_factors', 'recovery_codes', 'sign_in_challenges', 'auth_settings'
    ] LOOP
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
CREATE POLICY lookup ON invites FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON user_factors FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON sign_in_challenges FOR SELECT TO behavry_control_owner USING (true);

DROP FUNCTION find_user(text);
CREATE FUNCTION find_user(wanted text)
RETURNS TABLE (
    tenant_id uuid, tenant_status text, user_id uuid, password_hash text, status text,
    factors text[]
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT u.tenant_id, t.status, u.id, u.password_hash, u.status,
           ARRAY(SELECT DISTINCT f.kind FROM user_factors f
                 WHERE f.tenant_id = u.tenant_id AND f.user_id = u.id
                   AND f.confirmed_at IS NOT NULL AND f.removed_at IS NULL ORDER BY f.kind)
    FROM users u JOIN tenants t ON t.id = u.tenant_id
    WHERE u.username = wanted
$$;

DROP FUNCTION find_user_session(bytea);
CREATE FUNCTION find_user_session(wanted bytea)
RETURNS TABLE (
    tenant_id uuid, tenant_slug text, tenant_status text, user_id uuid, username text, role text,
    user_status text, is_super_admin boolean, factors text[], session_id uuid, kind text,
    method text, created_at timestamptz, seen_at timestamptz, stepped_up_at timestamptz,
    ended_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.slug, t.status, u.id, u.username, u.role, u.status, u.is_super_admin,
           ARRAY(SELECT DISTINCT f.kind FROM user_factors f
                 WHERE f.tenant_id = u.tenant_id AND f.user_id = u.id
                   AND f.confirmed_at IS NOT NULL AND f.removed_at IS NULL ORDER BY f.kind),
           s.id, s.kind, s.method, s.created_at, s.seen_at,
           coalesce(s.stepped_up_at, s.created_at), s.ended_at
    FROM user_sessions s
    JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id
    JOIN tenants t ON t.id = s.tenant_id
    WHERE s.token_sha256 = wanted
$$;

DROP FUNCTION find_api_key(text);
CREATE FUNCTION find_api_key(wanted text)
RETURNS TABLE (
    tenant_id uuid, tenant_slug text, tenant_status text, name text, role text, scopes text[],
    secret_sha256 bytea, expires_at timestamptz, revoked_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.slug, t.status, k.name, k.role, k.scopes, k.secret_sha256, k.expires_at,
           k.revoked_at
    FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
    WHERE k.id = wanted
$$;

CREATE FUNCTION find_invite(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text, invite_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, i.id
    FROM invites i JOIN tenants t ON t.id = i.tenant_id
    WHERE i.token_sha256 = wanted
$$;

CREATE FUNCTION find_sign_in_challenge(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text, user_id uuid, username text, user_status text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, u.id, u.username, u.status
    FROM sign_in_challenges c
    JOIN users u ON u.tenant_id = c.tenant_id AND u.id = c.user_id
    JOIN tenants t ON t.id = c.tenant_id
    WHERE c.token_sha256 = wanted AND c.purpose = 'sign_in'
$$;

REVOKE ALL ON FUNCTION keep_last_admin(), find_user(text), find_user_session(bytea),
    find_api_key(text), find_invite(bytea), find_sign_in_challenge(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keep_last_admin(), find_user(text), find_user_session(bytea),
    find_api_key(text), find_invite(bytea), find_sign_in_challenge(bytea) TO behavry_control;
