package text

import (
	"slices"
	"strings"
	"testing"
)

// The world's names are taken, with the joiners that they need; what a reader cannot see is not.
func TestPlainText(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"alice": true, "می\u200cخواهم": true, "ශ්\u200dරී": true, "👩\u200d💻": true, "Łukasz 王": true,
		"a\x00b": false, "a\r\nb": false, "\u202ealice": false, "a\u2028b": false, "\xff": false,
	} {
		if PlainText(s) != want {
			t.Errorf("PlainText(%q) = %v", s, !want)
		}
	}
}

func TestIsName(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"cl_1": true, "https://app.example.com/c?a=1": true, "~": true, strings.Repeat("x", 255): true,
		"": false, "a b": false, `a"b`: false, `a\b`: false, "a\x7f": false, "é": false, strings.Repeat("x", 256): false,
	} {
		if IsName(s) != want {
			t.Errorf("IsName(%q) = %v", s, !want)
		}
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	allowed := []string{"https://a.example.com", "b", "https://c.example.com/"}
	got := Resources([]string{"https://c.example.com", "x", "b", "https://a.example.com/", "https://a.example.com"}, allowed)
	if want := []string{"https://c.example.com/", "b", "https://a.example.com"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q: in the order of the list, as they are allowed", got, want)
	}
}
