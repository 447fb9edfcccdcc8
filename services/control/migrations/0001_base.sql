-- Desired state of the installation: who may sign in, which agents and servers exist, what their
-- tools are. Every table with a tenant_id is under forced row-level security; `tenants` itself is
-- the one exemption (it names tenants, nothing of theirs).

CREATE TABLE tenants (
    id         uuid PRIMARY KEY,
    slug       text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9-]{2,39}$'),
    name       text NOT NULL,
    status     text NOT NULL CHECK (status IN ('active', 'suspended', 'deleted')),
    created_at timestamptz NOT NULL
);

-- People -------------------------------------------------------------------------------------

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL REFERENCES tenants (id),
    username      text NOT NULL UNIQUE,
    role          text NOT NULL CHECK (role IN ('viewer', 'analyst', 'policy_author', 'admin')),
    password_hash text NOT NULL,
    status        text NOT NULL CHECK (status IN ('active', 'deactivated')),
    created_at    timestamptz NOT NULL,
    UNIQUE (tenant_id, id)
);

CREATE TABLE user_sessions (
    token_sha256 bytea PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    user_id      uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    seen_at      timestamptz NOT NULL,
    ended_at     timestamptz,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);
CREATE INDEX user_sessions_user ON user_sessions (tenant_id, user_id);

CREATE TABLE api_keys (
    id            text PRIMARY KEY,
    tenant_id     uuid NOT NULL REFERENCES tenants (id),
    name          text NOT NULL,
    role          text NOT NULL CHECK (role IN ('viewer', 'analyst', 'policy_author', 'admin')),
    prefix        text NOT NULL,
    secret_sha256 bytea NOT NULL,
    created_by    text NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    revoked_at    timestamptz
);
CREATE INDEX api_keys_tenant ON api_keys (tenant_id, id);

-- Agents -------------------------------------------------------------------------------------

CREATE TABLE agent_classes (
    tenant_id uuid NOT NULL REFERENCES tenants (id),
    name      text NOT NULL CHECK (name ~ '^[a-z0-9_-]{1,40}$'),
    critical  boolean NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE agent_roles (
    tenant_id   uuid NOT NULL REFERENCES tenants (id),
    name        text NOT NULL,
    permissions text[] NOT NULL,
    revision    bigint NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE agents (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES tenants (id),
    name         text NOT NULL,
    type         text NOT NULL CHECK (type IN ('autonomous', 'assistant', 'service', 'worker')),
    class        text NOT NULL,
    owner        uuid,
    tags         text[] NOT NULL,
    roles        text[] NOT NULL,
    status       text NOT NULL CHECK (status IN ('pending', 'active', 'suspended', 'revoked')),
    token_life_s integer NOT NULL CHECK (token_life_s BETWEEN 60 AND 28800),
    revision     bigint NOT NULL,
    created_at   timestamptz NOT NULL,
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, class) REFERENCES agent_classes (tenant_id, name)
);

CREATE TABLE agent_secrets (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL,
    agent_id      uuid NOT NULL,
    secret_sha256 bytea NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    removed_at    timestamptz,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id)
);
CREATE INDEX agent_secrets_agent ON agent_secrets (agent_id) WHERE removed_at IS NULL;

CREATE TABLE agent_sessions (
    id               uuid PRIMARY KEY,
    tenant_id        uuid NOT NULL,
    agent_id         uuid NOT NULL,
    secret_id        uuid NOT NULL,
    created_at       timestamptz NOT NULL,
    renewed_at       timestamptz NOT NULL,
    -- When the last token of the session expires: until then a bundle names an ended session.
    token_expires_at timestamptz NOT NULL,
    ended_at         timestamptz,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id)
);
CREATE INDEX agent_sessions_live ON agent_sessions (agent_id, renewed_at) WHERE ended_at IS NULL;
CREATE INDEX agent_sessions_ended ON agent_sessions (tenant_id, token_expires_at)
    WHERE ended_at IS NOT NULL;

CREATE TABLE enrollment_tokens (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES tenants (id),
    token_sha256 bytea NOT NULL UNIQUE,
    label        text NOT NULL,
    type         text NOT NULL,
    class        text NOT NULL,
    roles        text[] NOT NULL,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    agent_id     uuid
);

-- Tool servers -------------------------------------------------------------------------------

CREATE TABLE servers (
    id                uuid PRIMARY KEY,
    tenant_id         uuid NOT NULL REFERENCES tenants (id),
    slug              text NOT NULL,
    domain            text NOT NULL,
    trust             text NOT NULL CHECK (trust IN ('trusted', 'untrusted', 'blocked')),
    transport         text NOT NULL CHECK (transport IN ('http', 'sse', 'stdio')),
    urls              text[] NOT NULL,
    stdio             text NOT NULL,
    era               text NOT NULL,
    case_fold         boolean NOT NULL,
    credential_kind   text NOT NULL CHECK (credential_kind IN ('none', 'header')),
    credential_header text NOT NULL,
    -- A reference, `secret://name`; the value lives in the data plane.
    credential_ref    text NOT NULL CHECK (credential_ref = '' OR credential_ref LIKE 'secret://%'),
    revision          bigint NOT NULL,
    created_at        timestamptz NOT NULL,
    UNIQUE (tenant_id, id),
    UNIQUE (tenant_id, slug)
);

CREATE TABLE tools (
    tenant_id     uuid NOT NULL,
    server_id     uuid NOT NULL,
    name          text NOT NULL,
    state         text NOT NULL CHECK (state IN ('unclassified', 'approved', 'hidden', 'changed')),
    action        text NOT NULL,
    category      text NOT NULL,
    allow_tags    text[] NOT NULL,
    -- The hash that was approved, and the one last seen; empty: none.
    pinned_hash   text NOT NULL,
    seen_hash     text NOT NULL,
    first_seen_at timestamptz,
    last_seen_at  timestamptz,
    revision      bigint NOT NULL,
    PRIMARY KEY (tenant_id, server_id, name),
    FOREIGN KEY (tenant_id, server_id) REFERENCES servers (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE tool_definitions (
    tenant_id   uuid NOT NULL,
    server_id   uuid NOT NULL,
    tool        text NOT NULL,
    schema_hash text NOT NULL,
    -- Canonical JSON as the plane saw it; bytea, because jsonb refuses NUL.
    definition  bytea NOT NULL,
    seen_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, server_id, tool, schema_hash),
    FOREIGN KEY (tenant_id, server_id, tool)
        REFERENCES tools (tenant_id, server_id, name) ON DELETE CASCADE
);

-- Long work ----------------------------------------------------------------------------------

CREATE TABLE jobs (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES tenants (id),
    kind        text NOT NULL,
    state       text NOT NULL
                CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    -- The other service's id of the same work.
    remote_id   text NOT NULL,
    progress    jsonb NOT NULL,
    result      jsonb,
    error       text NOT NULL,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL,
    finished_at timestamptz
);
CREATE INDEX jobs_open ON jobs (tenant_id) WHERE finished_at IS NULL;

-- Isolation ----------------------------------------------------------------------------------

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY[
        'users', 'user_sessions', 'api_keys', 'agent_classes', 'agent_roles', 'agents',
        'agent_secrets', 'agent_sessions', 'enrollment_tokens', 'servers', 'tools',
        'tool_definitions', 'jobs'
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

-- A credential names its tenant, so it must be found before a tenant is set. Only these functions
-- can: they run as the schema's owner, who cannot log in, may read just these tables, and each
-- answers one row for one exact key.
CREATE POLICY lookup ON users FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON user_sessions FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON api_keys FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON agents FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON agent_secrets FOR SELECT TO behavry_control_owner USING (true);
CREATE POLICY lookup ON enrollment_tokens FOR SELECT TO behavry_control_owner USING (true);

CREATE FUNCTION find_user(wanted text)
RETURNS TABLE (tenant_id uuid, user_id uuid, password_hash text, status text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT u.tenant_id, u.id, u.password_hash, u.status FROM users u WHERE u.username = wanted
$$;

CREATE FUNCTION find_user_session(wanted bytea)
RETURNS TABLE (
    tenant_id uuid, tenant_slug text, tenant_status text, user_id uuid, username text, role text,
    user_status text, created_at timestamptz, seen_at timestamptz, ended_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.slug, t.status, u.id, u.username, u.role, u.status,
           s.created_at, s.seen_at, s.ended_at
    FROM user_sessions s
    JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id
    JOIN tenants t ON t.id = s.tenant_id
    WHERE s.token_sha256 = wanted
$$;

CREATE FUNCTION find_api_key(wanted text)
RETURNS TABLE (
    tenant_id uuid, tenant_slug text, tenant_status text, name text, role text,
    secret_sha256 bytea, expires_at timestamptz, revoked_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.slug, t.status, k.name, k.role, k.secret_sha256, k.expires_at, k.revoked_at
    FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
    WHERE k.id = wanted
$$;

CREATE FUNCTION find_agent_secrets(wanted uuid)
RETURNS TABLE (
    tenant_id uuid, tenant_status text, agent_name text, secret_id uuid, secret_sha256 bytea,
    expires_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, a.name, s.id, s.secret_sha256, s.expires_at
    FROM agents a
    JOIN tenants t ON t.id = a.tenant_id
    JOIN agent_secrets s ON s.tenant_id = a.tenant_id AND s.agent_id = a.id
    WHERE a.id = wanted AND s.removed_at IS NULL
$$;

CREATE FUNCTION find_enrollment(wanted bytea)
RETURNS TABLE (tenant_id uuid, tenant_status text, enrollment_id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = control, pg_temp AS $$
    SELECT t.id, t.status, e.id
    FROM enrollment_tokens e JOIN tenants t ON t.id = e.tenant_id
    WHERE e.token_sha256 = wanted
$$;

REVOKE ALL ON FUNCTION find_user(text), find_user_session(bytea), find_api_key(text),
    find_agent_secrets(uuid), find_enrollment(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_user(text), find_user_session(bytea), find_api_key(text),
    find_agent_secrets(uuid), find_enrollment(bytea) TO behavry_control;
