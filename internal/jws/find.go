// JWTs in a text.

package jws

import "iter"

// maxStarts bounds at how many places of one run of letters a JWT is supposed to begin.
const maxStarts = 8

// Find yields what has the shape of a signed compact JWT, also where letters stand in front of it, as in an escaped URL:
// its header is a JSON object, which begins with a quote, so that its text begins with eyJ.
func Find(text []byte) iter.Seq[string] {
	end := func(i int) int {
		for ; i < len(text); i++ {
			if c := text[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				break
			}
		}
		return i
	}
	return func(yield func(string) bool) {
		for i := 0; i < len(text); {
			head := end(i)
			if head == i {
				i++
				continue
			}
			from := i
			i = head
			claims := end(min(head+1, len(text)))
			if head == len(text) || text[head] != '.' || claims == len(text) || text[claims] != '.' {
				continue
			}
			last := end(claims + 1)
			for at, tries := from, 0; at+2 < head && tries < maxStarts; at++ {
				if text[at] == 'e' && text[at+1] == 'y' && (at == from || text[at+2] == 'J') {
					tries++
					if !yield(string(text[at:last])) {
						return
					}
				}
			}
		}
	}
}
