-- One long transaction on a file database, then questions about all that it did.
pragma journal_mode = delete;
pragma cache_size = 200;
create table numbers (id integer primary key, value integer, text text);
create index by_value on numbers (value);
begin immediate;
insert into numbers
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)
    select i, (i * 7919) % 100003, printf('text %d %x', i, i * i) from n;
select 'inserted', count(*), sum(value) from numbers;
update numbers set value = value + 1, text = text || ' odd' where id % 2 = 1;
select 'updated', changes();
delete from numbers where value % 10 = 3;
select 'deleted', changes();
savepoint half;
delete from numbers where id > 100;
rollback to half;
release half;
commit;
select 'left', count(*), sum(id), sum(value), sum(length(text)), max(text) from numbers;
select 'per digit', value % 10, count(*), total(id) from numbers group by 2 order by 2;
pragma integrity_check;
