//go:build !unix

package sqlitestore

// identity is not known here: a file that was put back is recognised by its mark alone.
func identity(string) (inode, born uint64) { return 0, 0 }

func syncDir(string) error { return nil }
