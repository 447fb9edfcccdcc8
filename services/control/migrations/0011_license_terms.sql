-- What people were told last of how long their plan holds, so that each step is told once, whoever
-- of several processes comes first and however often they start anew.

CREATE TABLE license_terms (
    tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
    -- Of what entitlements said: an older word than this one tells nothing.
    epoch     text NOT NULL,
    revision  bigint NOT NULL,
    -- Empty: the term holds for longer.
    event     text NOT NULL
              CHECK (event IN ('', 'license.expiring', 'license.grace', 'license.lapsed')),
    term      text NOT NULL,
    ends_at_s bigint,
    step      integer NOT NULL,
    -- The features' modes then: what a lapse changes is told against them.
    modes     jsonb NOT NULL
);

ALTER TABLE license_terms ENABLE ROW LEVEL SECURITY;
ALTER TABLE license_terms FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON license_terms
    USING (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('behavry.tenant_id', true), '')::uuid);
