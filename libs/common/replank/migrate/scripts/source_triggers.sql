create or replace trigger :"insert_trigger" after insert on :"table_schema".:"table"
    referencing new table as changed
    for each statement execute function :"schema".capture();
create or replace trigger :"update_trigger" after update on :"table_schema".:"table"
    referencing old table as previous new table as changed
    for each statement execute function :"schema".capture();
create or replace trigger :"delete_trigger" after delete on :"table_schema".:"table"
    referencing old table as changed
    for each statement execute function :"schema".capture();
create or replace trigger :"truncate_trigger" before truncate on :"table_schema".:"table"
    for each statement execute function :"schema".refuse_truncate();
