-- An item whose proof was taken back is neither pending (nothing was said) nor failed (it was tried).
alter table readiness
    drop constraint readiness_state_check,
    add constraint readiness_state_check check (state in ('pending', 'met', 'failed', 'missing'));
