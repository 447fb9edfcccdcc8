"""What `behavry doctor` looks at. Each check is a function of what is there; none changes anything
but `mend`, which closes files that stand open.
"""
