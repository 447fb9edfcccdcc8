-- Like `settle`, which processes of the version before still call, and tells whom it found otherwise
-- than the caller knew them: those are read again, all others the caller knows whole. `changes` is
-- [{"id", "known", "due", "entitled"}], `known` the revision that the caller has read.
CREATE FUNCTION settle_known(changes jsonb, at_s bigint, OUT raised bigint, OUT others uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    one record;
    before text := current_setting('behavry.tenant_id', true);
BEGIN
    others := '{}';
    UPDATE entitlements.installation i
    SET revision = i.revision + 1, clock_mark_s = greatest(i.clock_mark_s, at_s)
    RETURNING i.revision INTO raised;
    FOR one IN
        SELECT * FROM jsonb_to_recordset(changes)
            AS c(id uuid, known bigint, due bigint, entitled text[])
    LOOP
        PERFORM set_config('behavry.tenant_id', one.id::text, true);
        UPDATE entitlements.tenants t
        SET revision = raised, settled_at_s = greatest(t.settled_at_s, at_s),
            entitled = CASE
                WHEN t.entitled @> one.entitled THEN t.entitled
                ELSE ARRAY(SELECT DISTINCT f FROM unnest(t.entitled || one.entitled) f ORDER BY f)
            END
        WHERE t.tenant_id = one.id
          AND (t.settled_at_s < one.due OR NOT t.entitled @> one.entitled);
        IF NOT FOUND THEN
            others := others || one.id;
            CONTINUE;
        END IF;
        UPDATE entitlements.directory d SET revision = raised
        WHERE d.id = one.id AND d.revision = one.known;
        IF NOT FOUND THEN
            UPDATE entitlements.directory d SET revision = raised WHERE d.id = one.id;
            others := others || one.id;
        END IF;
    END LOOP;
    PERFORM set_config('behavry.tenant_id', coalesce(before, ''), true);
END $$;
