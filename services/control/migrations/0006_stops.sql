-- What stands still, who is held to less, and how much a tenant may do.

CREATE TABLE kill_switches (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES tenants (id),
    scope       text NOT NULL CHECK (scope IN ('agent', 'class', 'server', 'tenant')),
    -- Agent id, class name, server slug; empty for the whole tenant. No reference: a stop outlives
    -- what it stops, so that a server made anew under its slug stands still too.
    subject     text NOT NULL CHECK ((scope = 'tenant') = (subject = '')),
    reason      text NOT NULL CHECK (length(reason) BETWEEN 8 AND 500),
    on_by       text NOT NULL,
    on_at       timestamptz NOT NULL,
    off_at      timestamptz,
    UNIQUE (tenant_id, id)
);
CREATE UNIQUE INDEX kill_switches_on ON kill_switches (tenant_id, scope, subject)
    WHERE off_at IS NULL;

CREATE TABLE kill_switch_releases (
    tenant_id      uuid NOT NULL,
    kill_switch_id uuid NOT NULL,
    user_id        uuid NOT NULL,
    reason         text NOT NULL CHECK (length(reason) BETWEEN 8 AND 500),
    given_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, kill_switch_id, user_id),
    FOREIGN KEY (tenant_id, kill_switch_id) REFERENCES kill_switches (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id)
);

-- What is in force now; the chain keeps what was.
CREATE TABLE restrictions (
    tenant_id         uuid NOT NULL,
    -- The agent's own id, or that of one of its sessions.
    subject_id        uuid NOT NULL,
    agent_id          uuid NOT NULL,
    profile           text NOT NULL
                      CHECK (profile IN ('read_only', 'investigation', 'wind_down', 'custom')),
    until             timestamptz NOT NULL,
    -- Null: everything; empty: nothing.
    tools             text[],
    resources         text[],
    max_arg_bytes     integer,
    rate_factor_milli integer NOT NULL CHECK (rate_factor_milli BETWEEN 1 AND 1000),
    reason            text NOT NULL CHECK (length(reason) BETWEEN 8 AND 500),
    restricted_by     text NOT NULL,
    restricted_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, subject_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id)
);

-- A tenant without a row has the shipped limits.
CREATE TABLE tenant_limits (
    tenant_id  uuid PRIMARY KEY REFERENCES tenants (id),
    document   jsonb NOT NULL,
    revision   bigint NOT NULL,
    updated_at timestamptz NOT NULL
);

DO $$
DECLARE
    isolated text;
BEGIN
    FOREACH isolated IN ARRAY ARRAY[
        'kill_switches', 'kill_switch_releases', 'restrictions', 'tenant_limits'
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
-- Who stopped what, and who wanted it released, stays in the books.
REVOKE DELETE ON kill_switches, kill_switch_releases FROM behavry_control;
