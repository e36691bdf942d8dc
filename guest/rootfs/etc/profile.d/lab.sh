# /etc/profile has set Debian's own PATH just now.
PATH=/opt/lab/bin:$PATH
export PATH
