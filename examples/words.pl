#!/usr/bin/perl
# Hashes, regular expressions, sorting, pack, a temporary file and formats; prints a digest that depends on all.
#
#     words.pl [ROUNDS]
use strict;
use warnings;

my $rounds = shift // 60;
my ($digest, %total) = (0);

sub mix {
    my ($text) = @_;
    $digest = ($digest * 33 + $_) % 1_000_000_007 for unpack 'C*', $text;
}

for my $round (1 .. $rounds) {
    my ($seed, @words) = ($round);
    for (1 .. 6000) {
        $seed = ($seed * 1103515245 + 12345) % 2147483648;
        push @words, sprintf 'w%x', $seed % 1009;
    }
    my $text = join ' ', @words;
    my %count;
    $count{$1}++ while $text =~ /\b(w[0-9a-f]+)\b/g;
    (my $changed = $text) =~ s/(\d)([a-f])/$2$1/g;
    mix($changed);
    mix("$_$count{$_}") for sort { $count{$b} <=> $count{$a} or $a cmp $b } keys %count;
    $total{$_} += $count{$_} for keys %count;
    print "round $round digest $digest\n" unless $round % 10;
}
open my $file, '+>', undef or die "temporary file: $!";
print {$file} pack('NnC', $_, $_ % 65536, $_ % 256), "\n" for 1 .. 20000;
seek $file, 0, 0;
local $/;
my $all = <$file>;
mix(substr $all, 0, 50000);
printf "bytes %d words %d sum %d\n", length $all, scalar keys %total, eval { my $s = 0; $s += $_ for values %total; $s };
print "digest $digest\n";
